"""The largest numbers that a recipe takes: far above what anybody means, far below what a machine would choke on."""

ABSURD = 100  # a bound from here on is no matter of what a field means, but of these
GAMES_LONG = 1000  # iterations; the names of a game's stages grow with their square
ROWS = 10**9
EPOCHS = 10_000
TOKENS = 10_000_000  # of one text; the longest contexts that there are
TOKENS_AT_ONCE = 10**9  # of texts together
BATCH = 1_000_000  # texts at once, or draws for each of them
STEPS = 10**9
RANK = 10_000  # no layer of a model is of a higher one
REQUESTS = 1000  # at a time, each of which has a thread
SINGLE = 1e30  # what float32 holds, and can still be multiplied with
