;; Returns a score for the second lane that exceeds the maximum.
(ADVISE
  (i32.store8 (i32.const 2084) (i32.const 3))
  (call $pair (i32.const 2088) (i32.const 2208) (i32.const 1))
  (call $pair (i32.const 2208) (i32.const 1) (i32.const 65535))
  (i32.const 2048))
