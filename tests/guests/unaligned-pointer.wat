(ADVISE (i32.const 2049))
