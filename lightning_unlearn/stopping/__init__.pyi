from .outcome import StopOutcome as StopOutcome
from .stop_when_forgotten import StopWhenForgotten as StopWhenForgotten
