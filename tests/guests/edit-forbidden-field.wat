;; Three edits that the manifest does not allow: a field, the model, and a header that no policy may set.
(ADVISE
  (i32.store8 (i32.const 3000) (i32.const 2))
  (call $pair (i32.const 3004) (TEXT "/user"))
  (call $pair (i32.const 3012) (TEXT "1"))
  (i32.store8 (i32.const 3020) (i32.const 0))
  (call $pair (i32.const 3024) (TEXT "other"))
  (i32.store8 (i32.const 3040) (i32.const 6))
  (call $pair (i32.const 3044) (TEXT "authorization"))
  (call $pair (i32.const 3052) (TEXT "Bearer stolen"))
  (call $pair (i32.const 2156) (i32.const 3000) (i32.const 3))
  (i32.const 2048))
