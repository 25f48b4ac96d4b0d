;; Stores fifty entries of 4 KiB per call, each under a new key.
(USE state.put $put)
(global $number (mut i32) (i32.const 0))
(func $letter (param $at i32) (param $divisor i32)
  (i32.store8 (local.get $at)
    (i32.add (i32.const 97) (i32.rem_u (i32.div_u (global.get $number) (local.get $divisor)) (i32.const 26)))))
(ADVISE
  (local $left i32)
  (local.set $left (i32.const 50))
  (loop $again
    (call $letter (i32.const 3000) (i32.const 1))
    (call $letter (i32.const 3001) (i32.const 26))
    (call $letter (i32.const 3002) (i32.const 676))
    (call $letter (i32.const 3003) (i32.const 17576))
    (global.set $number (i32.add (global.get $number) (i32.const 1)))
    (call $put (i32.const 3000) (i32.const 4) (i32.const 131072) (i32.const 4096) (i32.const 0) (i32.const 3008))
    (local.set $left (i32.sub (local.get $left) (i32.const 1)))
    (br_if $again (local.get $left)))
  (i32.const 2048))
