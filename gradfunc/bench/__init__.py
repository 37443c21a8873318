"""What per-sample gradients cost on this machine, as a ratio to one plain backward pass.

_workload     a model, a batch and its losses as a value; made once, it is a case
_gpt          a small GPT as a plain module
_networks     the other networks: convolutions, residual blocks, recurrence, vision transformer
_workloads    the workloads by name
_of_model     the user's own model as a workload
_steady       whether a model gives the same each time
_by_hand      rows by `vmap(grad)` or a loop, without gradfunc
_step         a training step: pure stages beside the same in place
_floor        what clipping by factors cannot do without, in bare operations
_truth        the answers in float64, and how far from them a result is
_contender    what is timed: a way to compute the quantities
_peers/       other libraries as contenders, a file each
_contenders   gradfunc's own and base lines, by name
_answers      the answers at two precisions, and whether a difference is rounding
_memory       the peak of extra bytes during one call
_apart        work in a process of its own, and the memory of that
_attribution  influence of a slice by gradfunc and by other libraries
_environment  where it ran
_report       rows, tables, JSON
_timing       calls interleaved, round by round
_run          all of it
_zoo_report   exact, wrong or refused: a model a row
_zoo_table    the zoo's models through every contender, in float64
"""

from ._contender import Contender as Contender
from ._contender import Library as Library
from ._contender import Limit as Limit
from ._contenders import CONTENDERS as CONTENDERS
from ._contenders import gradfunc as gradfunc
from ._memory import peak_bytes as peak_bytes
from ._of_model import of_model as of_model
from ._peers import PEERS as PEERS
from ._report import BenchReport as BenchReport
from ._report import BenchRow as BenchRow
from ._run import run as run
from ._truth import QUANTITIES as QUANTITIES
from ._workload import Case as Case
from ._workload import Workload as Workload
from ._workloads import WORKLOADS as WORKLOADS
from ._workloads import cnn as cnn
from ._workloads import gpt as gpt
from ._workloads import lstm as lstm
from ._workloads import mlp as mlp
from ._workloads import resnet as resnet
from ._workloads import vit as vit
from ._zoo_report import ZooReport as ZooReport
from ._zoo_report import ZooRow as ZooRow
from ._zoo_table import zoo as zoo
