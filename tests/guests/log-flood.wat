;; Writes a thousand log lines in one call.
(USE log.write $write)
(ADVISE
  (local $left i32)
  (local.set $left (i32.const 1000))
  (loop $again
    (call $write (i32.const 3) (TEXT "a repeated line"))
    (local.set $left (i32.sub (local.get $left) (i32.const 1)))
    (br_if $again (local.get $left)))
  (i32.const 2048))
