(ADVISE (loop $again (br $again)) (i32.const 1024))
