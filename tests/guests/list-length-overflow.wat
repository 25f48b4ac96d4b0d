;; lane-advice.only with so many lanes that their bytes, four each, are four in 32 bits.
(ADVISE
  (i32.store8 (i32.const 2084) (i32.const 1))
  (i32.store (i32.const 2088) (i32.const 4096))
  (i32.store (i32.const 2092) (i32.const 0x40000001))
  (i32.const 2048))
