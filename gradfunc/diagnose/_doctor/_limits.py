"""Every threshold of the doctor's own probes, with its reason. (Those of gradient flow: `_flow/_verdict.py`.)"""

# --- data ---------------------------------------------------------------------------------------------------------
# The condition number of a linear layer's curvature is the square of the quotient of its features' sizes: at 100,
# gradient descent takes 10^4 times as many steps along the smallest as along the largest.
FEATURES = 100.0
# Initialisations keep the variance of inputs of variance 1 (Glorot and Bengio 2010; He et al. 2015). Curvature of the
# first layer grows with the square of the size: at 10, the largest stable rate is a hundredth.
SIZE = 10.0
# The curvature of a squared loss does not depend on the target, but gradients are proportional to it: beyond 10 times
# the unit size of outputs at the start, a step is ten times what the initialisation was made for.
TARGET = 10.0
# From this many samples on, a constant column is unlikely to be chance: a binary feature with a share of 1/4 has the
# same value in 32 samples once in 10^4 batches.
CONSTANT = 32
# A spread of ten times what rounding a mean of numbers of one size leaves in float32 is none.
CONSTANT_STD = 1e-6
# A tenth of the samples there twice: an estimate from n samples then has the variance of one from less than n.
DUPLICATES = 0.1
# At 9 : 1 the constant prediction is right nine times in ten.
IMBALANCE = 0.9
# Below a p-value of 1/1000 of a permutation test labels do depend on inputs; above 1/20 nothing shows that they do.
RELATED, UNRELATED = 1e-3, 0.05
PERMUTATIONS = 999
NEIGHBOURS = 64  # samples that a test of labels against neighbours takes at least
SAMPLES = 512  # and at most

# --- loss ---------------------------------------------------------------------------------------------------------
# Outputs of a net at the usual initialisation have a variance of about that of the target; the loss is then about
# twice that of the best constant. Four times is an output twice as large as that.
WORSE = 4.0

# --- rate ---------------------------------------------------------------------------------------------------------
# Below a ten-thousandth of the largest stable rate, ten thousand steps do what one could. (A thousandth is in use,
# where a trained net is tuned.)
SLOW = 1e-4
# A net that leaves less than half of what a constant leaves has learned, at whatever rate; and where losses go to 0 the
# curvature goes with them, so that the largest stable rate says nothing any more.
LEARNED = 0.5
# A step that moves weights by less than this share takes over a million of them to move weights by their own size.
STILL = 1e-6
# Where decay pulls ten times as hard as the loss pushes, weights shrink whatever the data say. (At an equilibrium the
# two are equal.)
DECAY = 10.0
STEPS = 3  # of the user's optimiser on copies: an unstable direction grows by its factor cubed

# --- step ---------------------------------------------------------------------------------------------------------
# Loss scales are powers of two, of at least 2^8 as a rule (torch starts at 2^16).
SCALE = 2.0**8
# A clip is there for gradients that are suddenly ten times as large. One beyond a hundred times lets all of them pass.
LOOSE = 100.0
CLIPS = 32  # reports that a verdict on a chain's clip takes: one that bites in a tenth of steps is missed at 0.03
ENLARGED = 2.0**20  # gradients, to see the bound of a clip: a power of two, which rounds nothing
# Two gradients that went different ways differ by rounding and its amplification; a fault of a step is of order 1.
SAME = 1e-3

# --- numerics -----------------------------------------------------------------------------------------------------
# A gradient whose direction is off by a tenth: as much as the noise of a batch of a hundred at unit signal.
PRECISION = 0.1
# Half of the updates are rounded away.
LOST = 0.5
# A batch norm that sees so few values a channel normalises them by themselves: with two they become +1 and -1.
FEW = 4
# Noise is ten times the gradient (its square a hundred times).
NOISE = 100.0
