;; Rejects with status 400 plus the number of visible headers.
(HANDLE
  (i32.store8 (i32.const 1024) (i32.const 1))
  (i32.store16 (i32.const 1028) (i32.add (i32.const 400) (local.get $headers_len)))
  (i32.const 1024))
