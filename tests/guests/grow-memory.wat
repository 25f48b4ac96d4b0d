;; Takes a page at a time until there are no more, and cannot go on without.
(ADVISE
  (block $full (loop $more
    (br_if $full (i32.eq (memory.grow (i32.const 16)) (i32.const -1)))
    (br $more)))
  unreachable)
