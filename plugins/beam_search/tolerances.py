"""How far the beam-search kernels may be from their reference.

`beam_update` and `beam_stop`: not at all. Every score is one fp32 addition or division per step, in the reference's
order. `log_softmax_top`: the tokens and their order exactly; the values as below.
"""

# The sum of up to 262144 exponentials in fp32 is off by a few units in the last place, since every lane sums a short
# part and the parts are summed pairwise; its logarithm is then off by as much, absolutely. Subtracting the maximum and
# the logarithm rounds twice, relative to values of up to some hundred.
RELATIVE = 2e-6
ABSOLUTE = 5e-6
