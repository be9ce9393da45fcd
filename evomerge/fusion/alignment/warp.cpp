// Dynamic time warping over integers for evomerge.fusion.alignment.dynamic, which does the same with NumPy, row by row.
// Built by evomerge.merging.native.build.

#include <algorithm>
#include <cstdint>
#include <vector>

extern "C" {

int32_t evomerge_version() { return 1; }

// M[i, j] = c + min(M[i-1, j], M[i, j-1], M[i-1, j-1]), c = costs[source[i], target[j]].
//
// costs: [.., width]. Gives the first and the last i of the path for each j, and returns M[n-1, m-1]. Where steps tie,
// the diagonal goes first, then i - 1 (source_first) or j - 1.
int64_t evomerge_warp(const int32_t* costs, int64_t width, const int64_t* source, int64_t n, const int64_t* target,
                      int64_t m, int32_t source_first, int32_t* first, int32_t* last) {
  // The step that the way back takes in each cell: 0 diagonal, 1 i - 1, 2 j - 1.
  std::vector<uint8_t> steps(static_cast<size_t>(n * m));
  std::vector<int64_t> row(static_cast<size_t>(m));
  std::vector<int32_t> own(static_cast<size_t>(m));
  for (int64_t i = 0; i < n; ++i) {
    const int32_t* c = costs + source[i] * width;
    for (int64_t j = 0; j < m; ++j) own[j] = c[target[j]];
    uint8_t* step = steps.data() + i * m;
    if (i == 0) {
      row[0] = own[0];
      for (int64_t j = 1; j < m; ++j) {
        row[j] = own[j] + row[j - 1];
        step[j] = 2;
      }
      continue;
    }
    int64_t diagonal = row[0];
    row[0] += own[0];
    step[0] = 1;
    int64_t left = row[0];
    for (int64_t j = 1; j < m; ++j) {
      const int64_t up = row[j];
      const int64_t least = std::min(std::min(up, left), diagonal);
      const bool upward = source_first ? up <= left : up < left;
      step[j] = diagonal == least ? 0 : upward ? 1 : 2;
      diagonal = up;
      left = own[j] + least;
      row[j] = left;
    }
  }
  for (int64_t j = 0; j < m; ++j) last[j] = -1;
  int64_t i = n - 1, j = m - 1;
  while (true) {
    first[j] = static_cast<int32_t>(i);
    if (last[j] < 0) last[j] = static_cast<int32_t>(i);
    if (i == 0 && j == 0) break;
    const uint8_t step = steps[i * m + j];
    if (step != 2) --i;
    if (step != 1) --j;
  }
  return row[m - 1];
}

}  // extern "C"
