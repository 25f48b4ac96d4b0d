;; Calls the host for a text, and calls the host again when the host allocates memory for it.
(USE request.text $text)
(USE request.contains $contains)
(global $asked (mut i32) (i32.const 0))
(func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
  (if (global.get $asked) (then (drop (call $contains (TEXT "x") (i32.const 0)))))
  (i32.const 65536))
(ADVISE
  (global.set $asked (i32.const 1))
  (call $text (i32.const 0) (i64.const 0) (i32.const 9) (i32.const 3000))
  (i32.const 2048))
