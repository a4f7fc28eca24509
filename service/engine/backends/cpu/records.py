"""What Python and the compiled kernels say to each other by: numbers of kinds, places of fields in records.

A record is an array of int64; a field's constant is its offset in bytes. `linear`, `attention`, `forward`,
`draw` and `threads` fill records in, the kernels in `native` read them. Nothing is imported, so whoever only
calls kernels loads no compiler.
"""

from __future__ import annotations

# kinds of weights
FLOAT32, BFLOAT16, INT8 = 0, 1, 2

# kinds of output rows
OUT_FLOAT32, OUT_BFLOAT16 = 0, 1

# activations that the kernels know
NO_ACTIVATION, GELU_TANH, RELU = 0, 1, 2

META = 64  # bytes at the end of a packed row: an int8 row's scale (float32) and zero point (int32)

# a linear layer
W_KIND, W_K, W_N, W_STEPS, W_TILES, W_TILE_ADDRESS = 0, 8, 16, 24, 32, 40
W_BIAS, W_SCALE, W_COLUMN_SUM, W_ACTIVATION, W_ROW_BYTES = range(48, 88, 8)  # vectors are padded to tiles
W_FUNCTION = 88  # address of `multiply_one`
W_FIELDS = 16

# the cache of keys and values
A_HEADS, A_HEAD_DIM, A_BLOCK, A_IS_BF16, A_SCRATCH, A_SCRATCH_BYTES, A_LAYER_BYTES = range(0, 56, 8)
A_KEYS, A_VALUES, A_FUNCTION = 56, 64, 72  # the function: address of `attend_rows`
A_FIELDS = 10
SCRATCH_ROWS = 16  # rows of scores and of sums that a thread has room for; at least HEADS and QUERIES

# a batch; those of the second line are for a whole forward pass only
B_TOKENS, B_SEQUENCES, B_STARTS, B_LENGTHS, B_TABLES, B_TABLE_BYTES, B_SLOTS = range(0, 56, 8)
B_IDS, B_POSITIONS, B_ROWS, B_NUM_ROWS, B_LOGITS = range(64, 104, 8)
B_FIELDS = 16

# a model and its buffers, and one of its layers
M_LAYERS, M_WIDTH, M_EPSILON, M_TOKENS, M_POSITIONS = range(0, 40, 8)  # the last two: embedding tables
M_LAYER, M_NORM_WEIGHT, M_NORM_BIAS, M_HEAD, M_CACHE = range(40, 80, 8)  # M_LAYER: the layers' L_* records
M_X, M_PACKED, M_QKV, M_ATTENDED, M_ATTENDED_PACKED, M_INNER, M_INNER_PACKED, M_NORMED = range(80, 144, 8)
M_FIELDS = 20
L_NORM_1_WEIGHT, L_NORM_1_BIAS, L_QKV, L_ATTENTION_OUT, L_NORM_2_WEIGHT, L_NORM_2_BIAS = range(0, 48, 8)
L_INNER_IN, L_INNER_OUT, L_SCALE, L_BYTES = 48, 56, 64, 80

# rows to draw from
D_LOGITS, D_ROW_BYTES, D_COUNT, D_WIDTH, D_ROWS, D_INVERSE, D_OFFSET, D_TOP_K, D_TOP_P = range(0, 72, 8)
D_DRAWS, D_IDS, D_SCRATCH, D_SCRATCH_BYTES = range(72, 104, 8)
UNIT_BITS = 53  # numbers from 0 to 1 travel as multiples of 2^-53
CUT_BINS = 1024
CUT_BYTES = (
    16 * CUT_BINS
)  # a count and a mass for each bin; a row of masses (int64) and of values (float32) follow

# the pool of threads
P_TASK, P_ARGS, P_COUNT, P_FIRST_PHASE, P_PINS = range(0, 40, 8)  # written between tasks
P_STATE, P_DONE, P_IS_OPEN, P_INSIDE, P_SLEEPERS, P_IS_CLOSED = range(
    64, 448, 64
)  # each on a line of its own
P_MUTEX, P_CONDITION = 512, 768  # room for any platform's pthread types
P_MASK, P_FREE_MASK, P_MASK_BYTES = 1024, 1152, 128  # processor sets of the caller: within a task, outside
P_OWN, P_OWN_BYTES = 1280, 64  # per thread: the cells below
P_OWN_PHASE, P_OWN_TOTAL, P_OWN_TAKEN = 0, 8, 16
