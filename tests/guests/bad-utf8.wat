;; Returns policy-error.other with bytes that are not UTF-8.
(ADVISE
  (i32.store8 (i32.const 2048) (i32.const 1))
  (i32.store8 (i32.const 2052) (i32.const 3))
  (i32.store (i32.const 2056) (i32.const 4096))
  (i32.store (i32.const 2060) (i32.const 2))
  (i32.store16 (i32.const 4096) (i32.const 0xfeff))
  (i32.const 2048))
