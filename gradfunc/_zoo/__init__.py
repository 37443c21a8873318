"""`MODELS`: small modules, one for each thing that goes wrong with per-sample gradients, by name.

What they are for: every engine, and every other library, can be asked for the rows of each of them, and told from a
plain loop over samples. So the tests of the zoo hold this package to them, and a table of libraries counts how many of
them each gets right, gets wrong, or refuses.

How to add one: call `add(name, hazard, module, batch, kinds)` in the file of its family. The name is the field's own;
the hazard says in one line what a careless tool does with it. Sizes are tiny but tell things apart: a product has more
entries than both of its sides (`I O > T (I + O)`, over all uses), a table more rows than there are tokens; batches are
of 4 to 6 samples, and where a dimension can be taken for that of the samples, it has their number. The forward pass
draws nothing, and every parameter has a gradient in some sample (or the kind "-", or is `asleep`).

    _model          Model, MODELS, and how a model is made
    _products       matrix products, in every way to write one
    _convolutions   every stride, padding, group, transposed
    _norms          within a sample
    _embeddings     rows of a table
    _attention      torch's modules, and by hand
    _recurrence     one weight at every step
    _shared         one parameter in several places
    _derived        a function of parameters before the data
    _routing        rows that leave their places
    _broadcast      a parameter for the whole batch at once
    _opaque         functions of one's own, checkpoints, in place
    _degenerate     no gradient: asleep, unused, frozen, ignored

Example:
    >>> from gradfunc import _zoo
    >>> model = _zoo.MODELS["tied embedding and head"]
    >>> model.kinds["table.weight"]
    'outer+rows'
    >>> module, (*inputs, target) = model.module(), model.batch()
    >>> model.criterion(module(*inputs), target, reduction="none").shape
    torch.Size([4, 2])
"""

from . import _attention as _attention
from . import _broadcast as _broadcast
from . import _convolutions as _convolutions
from . import _degenerate as _degenerate
from . import _derived as _derived
from . import _embeddings as _embeddings
from . import _norms as _norms
from . import _opaque as _opaque
from . import _products as _products
from . import _recurrence as _recurrence
from . import _routing as _routing
from . import _shared as _shared
from ._model import MODELS as MODELS
from ._model import Model as Model
