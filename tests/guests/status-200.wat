;; Rejects with status 200, which is not an error status, and with empty code and message.
(ADVISE
  (i32.store8 (i32.const 2052) (i32.const 1))
  (i32.store16 (i32.const 2056) (i32.const 200))
  (i32.const 2048))
