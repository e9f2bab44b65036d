from .influence import InfluenceUnlearning as InfluenceUnlearning
from .sophia import Sophia as Sophia
from .soul import SOUL as SOUL
