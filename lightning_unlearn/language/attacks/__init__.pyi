from .attack import Cost as Cost
from .attack import LanguageAttack as LanguageAttack
