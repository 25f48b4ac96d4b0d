(func $start (loop $again (br $again)))
(start $start)
(ADVISE (i32.const 1024))
