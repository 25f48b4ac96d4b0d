;; Replaces the body with bytes that are not UTF-8.
(data (i32.const 2048) "{\ff}")
(data (i32.const 1024) "\02\00\00\00")
(data (i32.const 1052) "\01\00\00\00\00\08\00\00\03\00\00\00")
(HANDLE (i32.const 1024))
