;; Returns an undefined variant of lane-advice.
(ADVISE
  (i32.store8 (i32.const 2084) (i32.const 99))
  (i32.const 2048))
