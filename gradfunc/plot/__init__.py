"""Reports as figures (matplotlib: `pip install 'gradfunc[plot]'`).

Each function takes a report and returns a `matplotlib.figure.Figure`. The title says what was found, computed from the
report; a line below, how to read the figure. pyplot is not used: nothing is kept, shown, or set for other figures. The
same report gives the same bytes.

figure = gf.plot.flow(gf.diagnose.gradient_flow(model, criterion, batch))
gf.plot.save(figure, "flow.svg")

_style, _save   one palette and style; as SVG, PNG, PDF       _violins, _dots   two ways to draw many numbers
_flow, _grid    violins, schemes side by side, norms, factors  _training         losses and clips, flow over training
_recurrence     through time, eigenvalues, remedies            _clip             what clipping does to a direction
_audit, _bench, _check   discrepancies, costs, checks          _figures          all that fit a report
"""

from ._audit import discrepancies as discrepancies
from ._bench import costs as costs
from ._check import checks as checks
from ._clip import clip_geometry as clip_geometry
from ._figures import figures as figures
from ._flow import flow as flow
from ._flow import gradient_norms as gradient_norms
from ._flow import schemes as schemes
from ._grid import factors as factors
from ._recurrence import eigenvalues as eigenvalues
from ._recurrence import remedies as remedies
from ._recurrence import through_time as through_time
from ._save import save as save
from ._save import svg as svg
from ._style import PALETTE as PALETTE
from ._training import flow_over_training as flow_over_training
from ._training import losses as losses
