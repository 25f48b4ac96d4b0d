;; Returns the error out-of-budget, which is not a fault.
(ADVISE
  (i32.store8 (i32.const 2048) (i32.const 1))
  (i32.store8 (i32.const 2052) (i32.const 2))
  (i32.const 2048))
