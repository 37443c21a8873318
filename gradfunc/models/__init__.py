"""Small models as functions: `init() -> params`, `apply(params, x)`. They enter through `gf.stateless` too."""

from ._block import block as block
from ._echo_state import echo_state as echo_state
from ._gated import gru as gru
from ._gated import lstm as lstm
from ._mlp import Pure as Pure
from ._mlp import mlp as mlp
from ._recurrent import Recurrent as Recurrent
from ._recurrent import leaky_rnn as leaky_rnn
from ._recurrent import rnn as rnn
from ._recurrent import skip_rnn as skip_rnn
