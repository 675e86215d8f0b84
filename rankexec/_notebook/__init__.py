"""What the IPython extensions in `magics` and `ddip` are made of.

    page                a shell with the magics of one extension
    autoranked          cells that run on ranks without saying so
    options, table      what the magics take, and what is said of it; the gang as a table
    cell, shown         a cell as a call; what it displays, in the rank and in the notebook
    reach, syntax       which variables a cell reads; what it is made of
    group, dip_options  of `ddip`: its session; what its magics take
    apps                what its ranks are prepared for

`apps`, `cell`, `shown` and `reach` go to the ranks with a cell: they import no IPython by
themselves.
"""
