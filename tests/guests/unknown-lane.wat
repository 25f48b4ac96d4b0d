;; Returns lane-advice.only with a lane that does not exist.
(ADVISE
  (i32.store8 (i32.const 2084) (i32.const 1))
  (i32.store (i32.const 2088) (i32.const 4096))
  (i32.store (i32.const 2092) (i32.const 1))
  (i32.store (i32.const 4096) (i32.const 99))
  (i32.const 2048))
