#pragma once

// Allocations since the program's start: by the backend (a frame of it is on the stack), and by everything else.
struct Allocations {
  long ours, backend;
};

Allocations allocations();
void count_allocations(bool on);  // off at the start: it costs a walk of the stack each
