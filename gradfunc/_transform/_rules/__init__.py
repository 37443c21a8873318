"""Rules: gradients, or rows, to what is added to the parameters. Those with several parts are chains of them."""

from ._adam import adam as adam
from ._adam import adamw as adamw
from ._adam_per_sample import adam_per_sample as adam_per_sample
from ._descend import descend as descend
from ._lion import lion as lion
from ._lion import scale_by_lion as scale_by_lion
from ._momentum import momentum as momentum
from ._muon import muon as muon
from ._muon import orthogonalize as orthogonalize
from ._noise_scaled_step import noise_scaled_step as noise_scaled_step
from ._scale_by_adam import scale_by_adam as scale_by_adam
from ._sgd import sgd as sgd
from ._torch_optim import from_torch_optim as from_torch_optim
