"""The engine: tokens in, tokens out. No HTTP, no metrics library; it gets a frozen config and an observer.

The policy (the files of this folder that import no torch) decides what each step computes; `model` computes
it on tensors, `backends` with one wing for each kind of processor. In an hour, in this order:

    minutes  lines  file
          7    272  sequence       what is asked for, a sequence's state, what comes back
          3     68  batch          what one step computes
          3    118  detokenizer    tokens to text, held back no longer than needed
          4    102  block_pool     who holds which block of the KV cache
          6    122  prefix_cache   sequences that begin alike share blocks: match, claim, publish, forget
          4     95  fair_queue     whose turn it is
         15    295  scheduler      what the next step computes
          9    234  engine         one step: schedule, execute, commit
          9    258  async_engine   the thread that steps, and the event loop's side of it

An example, which a test carries out. A prompt of 5 tokens comes to a cache with blocks of 4 slots whose
block 0 is taken; each step computes the positions whose keys and values are missing and writes them into
their slots (block * 4 + position % 4). `computed` and `registered` are the sequence's `num_computed_tokens`
and `num_registered_blocks` after the step: a block that is full can be found by others.

    step  positions  slots      blocks  computed  registered
       1  0 1 2 3 4  4 5 6 7 8  1 2            5           1
       2  5          9          1 2            6           1
       3  6          10         1 2            7           1
       4  7          11         1 2            8           2
       5  8          12         1 2 3          9           2

Another prompt with the same 5 tokens claims block 1 and computes position 4 alone: the last token of a prompt
is always computed, since the next one is drawn from what the model says there.

To look up when a question leads there: `step_cost` (what steps take, and may take), `time_share` and
`quota` (fair shares of time and of places), `foresight` (what cannot be done), `speculator`,
`draft_model` and `twins` (drafts), `beams` and `beam_search`, `job_stream` (what a caller holds),
`observer` and `pulse` (who watches), `loader`; then `model.runner` and `backend`.
"""
