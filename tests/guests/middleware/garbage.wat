;; Replaces the body with invalid JSON, and sets a valid header.
(data (i32.const 2048) "{")
(data (i32.const 1024) "\02\00\00\00\00\09\00\00\01\00\00\00")
(data (i32.const 1052) "\01\00\00\00\00\08\00\00\01\00\00\00")
(data (i32.const 2304) "\00\0a\00\00\05\00\00\00\05\0a\00\00\04\00\00\00")
(data (i32.const 2560) "x-setdone")
(HANDLE (i32.const 1024))
