"""One gang, from the first start to the last reap.

    caller process                                     rank processes, children of the guardian
    ------------------------------------------------   ----------------------------------------
    calling thread          supervising thread
    --------------          ------------------
    wire.pack(call) ------> Launcher.start(seat) ----> worker.main: unpack the call
                            all are ready   <--------- "ready"
    CallerRank.run: <------ go ----------------------> enter ctx
      enter ctx             reads every rank's         run fn
      run fn                reports, output and        report the outcome, inside ctx
      report ------------>  death; keeps the time <--- leave ctx, "left"
      leave ctx             settles the first
                            failure, ends the rest
    restore <-------------- resolves the future
                            reaps  <------------------ end of process

A rank reports from inside its context, because leaving one can hang when a peer is gone. The
calling thread takes part only when it is a rank itself (`caller_rank`); otherwise the supervising
thread does all of the left side.

A session (`standing`) is the same, held open: its processes (`crew`) serve one `Gang` after the
other, and a call that fails is broken off (`breaking`) instead of ended.

Modules, in the order in which they stand on each other: `call` (plain values), `namespace`,
`reducers`, `wire` (packing), `output`, `outcomes` (who failed first), `child` and `worker` (the
rank process), `caller` (the calling thread as a rank), `crew` (the processes), `gang` (the
supervising thread), `run` (a call from preparation to result), `fresh` (on processes of its own),
`standing` (on a session's).
"""
