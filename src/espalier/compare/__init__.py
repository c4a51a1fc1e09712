"""Which method prunes best here: every method in the same run, seeds, intervals, one reading of the test split."""

from espalier.compare.cell import Cell as Cell
from espalier.compare.cell import Contender as Contender
from espalier.compare.cell import Network as Network
from espalier.compare.cell import Range as Range
from espalier.compare.cell import Study as Study
from espalier.compare.running import Outcome as Outcome
from espalier.compare.running import check as check
from espalier.compare.running import run as run
from espalier.compare.statistics import Difference as Difference
from espalier.compare.statistics import Estimate as Estimate
from espalier.compare.statistics import difference as difference
from espalier.compare.statistics import estimate as estimate
from espalier.compare.statistics import mcnemar as mcnemar
from espalier.compare.summary import Comparison as Comparison
from espalier.compare.summary import Row as Row
from espalier.compare.summary import compare as compare
from espalier.compare.tuning import Tuning as Tuning
from espalier.compare.tuning import changed as changed
from espalier.compare.tuning import check_space as check_space
from espalier.compare.tuning import check_tuning as check_tuning
from espalier.compare.tuning import known as known
from espalier.compare.tuning import tune as tune
from espalier.compare.tuning import untunable as untunable
from espalier.compare.tuning import untuned as untuned
