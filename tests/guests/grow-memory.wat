;; Grows its memory until that fails, and traps.
(ADVISE
  (block $full (loop $more
    (br_if $full (i32.eq (memory.grow (i32.const 16)) (i32.const -1)))
    (br $more)))
  unreachable)
