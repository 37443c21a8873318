"""Equal up to rounding, for numbers of your own: unit roundoffs, bounds with their derivation, error scales.

**The model.** One operation is off by at most one unit roundoff u (half the spacing of numbers at 1), relatively:
`fl(a op b) = (a op b)(1 + d)`, `|d| <= u`, for `+ - * /` and `sqrt` (Higham, *Accuracy and Stability of Numerical
Algorithms*, 2nd ed., (2.4)). Where a result is denormal it is off by half the spacing of the denormals besides (2.8).

**k of them.** A product of k factors `(1 + d)^(+-1)` is `1 + t_k` with `|t_k| <= gamma_k = k u / (1 - k u)`, for
`k u < 1` (lemma 3.1). Rules (lemma 3.3): `(1 + t_j)(1 + t_k) = 1 + t_{j+k}`, and `(1 + t_j) / (1 + t_k)` is
`1 + t_{j+k}` for `k <= j`, else `1 + t_{j+2k}`.

**A sum.** Whatever the order of n terms, each goes through at most n - 1 additions, so the sum is within
`gamma_{n-1} sum |x_i|` of the exact one (section 4.2), and two orders are within twice that: `sum_bound`. With a
product in each term it is `gamma_n sum |x_i y_i|` (3.5). The bound is on the magnitudes, not on the sum: where terms
cancel, the sum has no digits left to agree in. Hence the error scales below.

**A norm.** n squares added: each square one rounding, at most n - 1 additions, one root, which halves what is before
it: `1 + t_{n+1}`. A norm that is safe from overflow divides by the largest entry first and multiplies after, and may be
put together from parts: three roundings in each square, two for the parts, one behind. `norm_factor` allows
`gamma_{n+8}` for all.

**A bounded row.** A clip multiplies a row of n entries by `C / norm`. With the norm `1 + t_{n+8}` off, the quotient is
`(1 + t_1) / (1 + t_{n+8}) = 1 + t_{2n+17}`; the product adds one rounding in the accumulation type, and two casts may
round to the type of the row. So a row that is bounded by C on paper has a norm of at most
`C (1 + gamma_{2n+18}(u_wide)) (1 + gamma_2(u))`: `clip_factor`, what `gf.testing.assert_norm_bounded` allows. As a
worst case it grows with n where errors in fact cancel, so a bound on large rows is better asked in float64.

**Two averages** of n rows: n roundings in a sum, one in the division, one in the product, on each side: `pair_factor`.

**Where there is no bound.** Two routes that share no intermediate number (two engines, a batch and its parts run
apart) are off by more than any bound on sums: what the loss does between is unknown. But rounding shrinks with u when
everything is repeated in a wider type, by about the ratio of the unit roundoffs, and an error of method stays:
`is_rounding`, with the geometric mean as the line; `assert_equal_up_to_rounding` runs both.

**Error scales.** A gradient's entry is compared on that sample's whole norm (`row_scale`), a sum on `sum |c_i| |g_i|`
(`sum_scale`), an inner product on `|g_i| |v|` (`dot_scale`), a Gram matrix on `|g_i| |g_j|` (`gram_scale`). "Relative,
entry by entry" means nothing: the true gradient of an attention's key bias is 0, and any rounding infinitely far off.
"""

from .._rounding import gamma as gamma
from .._rounding import is_rounding as is_rounding
from .._rounding import other_precisions as other_precisions
from .._rounding import pair_factor as pair_factor
from .._rounding import unit_roundoff as unit_roundoff
from ._error_bounds import assert_equal_up_to_rounding as assert_equal_up_to_rounding
from ._error_bounds import clip_factor as clip_factor
from ._error_bounds import dot_scale as dot_scale
from ._error_bounds import gram_scale as gram_scale
from ._error_bounds import norm_factor as norm_factor
from ._error_bounds import row_scale as row_scale
from ._error_bounds import sum_bound as sum_bound
from ._error_bounds import sum_scale as sum_scale
