(data (i32.const 1024) "\01\00\00\00\f4\01")
(HANDLE (i32.const 1024))
