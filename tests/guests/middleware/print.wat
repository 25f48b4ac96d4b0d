;; Writes two lines to standard error, and traps.
(import "wasi:cli/stderr@0.2.3" "get-stderr" (func $stderr (result i32)))
(import "wasi:io/streams@0.2.3" "[method]output-stream.blocking-write-and-flush" (func $write (param i32 i32 i32 i32)))
(import "wasi:io/streams@0.2.3" "[resource-drop]output-stream" (func $drop (param i32)))
(data (i32.const 2048) "first line\nsecond line")
(HANDLE
  (local $to i32)
  (local.set $to (call $stderr))
  (call $write (local.get $to) (i32.const 2048) (i32.const 22) (i32.const 512))
  (call $drop (local.get $to))
  (unreachable))
