"""A small functional training loop: any chain, watched, stopped and resumed.

fit = gf.train.fit(loss, gf.clip_per_sample(1.0) >> gf.mean() >> gf.adam(1e-3), model.params, (X, Y), epochs=10)
fit.params, fit.history["loss"], fit.stopped
"""

from ._callbacks import patience as patience
from ._checkpoint import Checkpoint as Checkpoint
from ._checkpoint import CheckpointError as CheckpointError
from ._checkpoint import load_checkpoint as load_checkpoint
from ._checkpoint import save_checkpoint as save_checkpoint
from ._evaluate import evaluate as evaluate
from ._fit import fit as fit
from ._history import History as History
from ._loop import Stopped as Stopped
from ._nonfinite import Nonfinite as Nonfinite
from ._result import Fit as Fit
from ._result import Interrupted as Interrupted
from ._snapshot import Snapshot as Snapshot
