(table 100000 funcref)
(ADVISE (i32.const 1024))
