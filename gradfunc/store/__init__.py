"""Per-sample gradients on disk: projected, whole or as factors, with ids and metadata, to be asked again and again.

store = gf.store.GradientStore.create("grads", projection=gf.projections.rademacher(512), params=model.params)
with store.writer() as w:
    w.append(f(model.params, X, Y), ids=ids, metadata={"label": Y})
store.top_k(f(model.params, x, y), k=10).ids

With `create(path, params=model.params, factored=True)` what layers saw and what came back to them is kept where that is
smaller than rows, and `store.gradients()` is a value like those that were appended: norms, gram, sum, clipping.

On disk: shards in the format of safetensors, each written beside its place, synced, renamed; then `manifest.json`,
which names them with their SHA-256, likewise. What the manifest names is acknowledged, and nothing takes it away; what
it does not name is no part of the store. One writer (a lock that ends with its process), any number of readers.
"""

from ._build import build as build
from ._error import StoreError as StoreError
from ._manifest import Manifest as Manifest
from ._manifest import Shard as Shard
from ._manifest import fingerprint as fingerprint
from ._query import TopK as TopK
from ._report import Damage as Damage
from ._report import StoreReport as StoreReport
from ._store import GradientStore as GradientStore
from ._verify import info as info
from ._verify import verify as verify
from ._writer import Writer as Writer
