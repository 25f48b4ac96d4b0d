;; Refuses with 400 and the number of headers that it sees.
(HANDLE
  (i32.store8 (i32.const 1024) (i32.const 1))
  (i32.store16 (i32.const 1028) (i32.add (i32.const 400) (local.get $headers_len)))
  (i32.const 1024))
