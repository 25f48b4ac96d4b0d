;; Creates a TCP socket.
(import "wasi:sockets/tcp-create-socket@0.2.3" "create-tcp-socket" (func $create (param i32 i32)))
(HANDLE (call $create (i32.const 0) (i32.const 512)) (i32.const 1024))
