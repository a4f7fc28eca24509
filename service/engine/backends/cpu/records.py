"""What Python and the compiled kernels say to each other by: numbers of kinds, offsets of fields in records.

A record is an array of int64; a field's constant is its offset in bytes. `linear`, `attention`, `forward`,
`draw` and `threads` fill records in, the kernels in `native` read them. Nothing is imported, so whoever only
calls kernels loads no compiler.
"""

from __future__ import annotations

# kinds of weights, and of the rows that they are multiplied by
FLOAT32, BFLOAT16, INT8 = 0, 1, 2

# kinds of output rows
OUT_FLOAT32, OUT_BFLOAT16 = 0, 1

# activations that the kernels know
NO_ACTIVATION, GELU_TANH, RELU = 0, 1, 2

META = 64  # bytes at the end of a packed row: an int8 row's scale (float32) and zero point (int32)

# a linear layer
W_KIND, W_K, W_N, W_STEPS, W_TILES, W_TILE_ADDRESS = 0, 8, 16, 24, 32, 40
W_BIAS, W_SCALE, W_COLUMN_SUM, W_ACTIVATION, W_ROW_BYTES = range(48, 88, 8)  # vectors are padded to tiles
W_FUNCTION, W_ROW_KIND = 88, 96  # address of `multiply_one`; kind of the packed rows
W_FIELDS = 16

# the cache of keys and values
A_HEADS, A_HEAD_DIM, A_BLOCK, A_IS_BF16, A_SCRATCH, A_SCRATCH_BYTES, A_LAYER_BYTES = range(0, 56, 8)
A_KEYS, A_VALUES, A_FUNCTION = 56, 64, 72  # the function: address of `attend_rows`
A_FIELDS = 10
SCRATCH_ROWS = 16  # rows of scores and of sums that a thread has room for; at least HEADS and MANY

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

# rows to draw from, or to score; D_END is an id that ends a text
D_LOGITS, D_ROW_BYTES, D_WIDTH, D_COUNT, D_TURNS, D_OUT, D_END = range(0, 56, 8)
D_TOP_IDS, D_TOP_LOGITS, D_NUM_TOP = 56, 64, 72  # int32 and float32, so many for each row
D_SCRATCH, D_SCRATCH_BYTES = 80, 88  # of one thread; the others are offsets in it
D_COPY, D_MASSES, D_ROOM, D_MARKS, D_BITS, D_MATCHES = range(96, 144, 8)

# what a sequence asks of all its draws
R_IS_DRAWN, R_INVERSE, R_OFFSET, R_TOP_K, R_TOP_P, R_SEED, R_ORDINAL = range(0, 56, 8)
R_REPETITION, R_FREQUENCY, R_PRESENCE, R_NGRAM, R_MIN_NEW_TOKENS = range(56, 96, 8)
R_NUM_TOP = 96  # -1 is off
R_BANNED, R_NUM_BANNED, R_BIASED, R_BIASES, R_NUM_BIASED = range(104, 144, 8)
R_IDS, R_NUM_PROMPT = 144, 152  # its text as int64; how many of it are the prompt
R_FIELDS = 20

# one row of a step: its rules, where its logits are, how long the text before it is; a number to draw by
# (-1: by seed and position) or an id to score; what its constraint allows, as bits or (no bytes) as int64 ids
T_RULES, T_ROW, T_LENGTH, T_GIVEN, T_ALLOWED, T_ALLOWED_BYTES, T_NUM_ALLOWED = range(0, 56, 8)
T_FIELDS = 7

# what comes of it: an id, nanoseconds, and of the raw logits the sum of exp(x - largest) and two of them
O_ID, O_DRAW_NS, O_SCORE_NS, O_SUM, O_LARGEST, O_CHOSEN = 0, 8, 16, 24, 32, 36
O_FIELDS = 5

UNIT_BITS = 53  # numbers from 0 to 1 travel as multiples of 2^-53

# the pool of threads: cells written between tasks; those written meanwhile, each on a cache line of its own
P_TASK, P_ARGS, P_COUNT, P_FIRST_PHASE, P_PINS = range(0, 40, 8)
P_STATE, P_DONE, P_IS_OPEN, P_INSIDE, P_SLEEPERS, P_IS_CLOSED = range(64, 448, 64)
P_MUTEX, P_CONDITION = 512, 768  # room for any platform's pthread types
P_MASK, P_FREE_MASK, P_MASK_BYTES = 1024, 1152, 128  # processor sets of the caller: within a task, outside
P_OWN, P_OWN_BYTES = 1280, 64  # per thread: the cells below
P_OWN_PHASE, P_OWN_TOTAL, P_OWN_TAKEN = 0, 8, 16
