;; Rejects with a random status from 400 to 489, after a check of the clock.
(import "wasi:random/random@0.2.3" "get-random-u64" (func $random (result i64)))
(import "wasi:clocks/wall-clock@0.2.3" "now" (func $now (param i32)))
(HANDLE
  (call $now (i32.const 512))
  ;; After 2020.
  (if (i64.lt_u (i64.load (i32.const 512)) (i64.const 1577836800)) (then (unreachable)))
  (i32.store8 (i32.const 1024) (i32.const 1))
  (i32.store16 (i32.const 1028)
    (i32.add (i32.const 400) (i32.wrap_i64 (i64.rem_u (call $random) (i64.const 90)))))
  (i32.const 1024))
