// Decodes tile programs.
#pragma once

#include <vector>

#include "core/program.h"

namespace resflow {

// Owns what a program points at.
struct ProgramStorage {
  std::vector<Step> steps;
  std::vector<Segment> segments;
  std::vector<ValuePlace> values;
  Program program;
};

// Decodes and validates the program that follows a plan's fields and parents, and lays out values and weights: sets the
// plan's program, in `storage`, and its sizes. Throws InvalidInput in the name of `op`.
void decode_program(const char* op, const int64_t* numbers, int64_t count, Plan& plan, ProgramStorage& storage);

}  // namespace resflow
