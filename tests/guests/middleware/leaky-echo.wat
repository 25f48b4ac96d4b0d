;; Replaces the body with itself, and never frees memory.
;; without post-return
(HANDLE
  (i32.store8 (i32.const 1024) (i32.const 2))
  (i32.store8 (i32.const 1052) (i32.const 1))
  (i32.store (i32.const 1056) (local.get $body))
  (i32.store (i32.const 1060) (local.get $body_len))
  (i32.const 1024))
