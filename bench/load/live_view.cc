#include "bench/load/live_view.h"

#include <unistd.h>

#include <cstdio>

namespace tidemark::bench {

LiveView::LiveView(bool wanted) : shown_(wanted && ::isatty(STDERR_FILENO) == 1) {}

void LiveView::draw(const std::vector<std::string>& lines) {
  if (!shown_) return;
  std::string text = drawn_ == 0 ? "" : "\x1b[" + std::to_string(drawn_) + "A";
  for (const std::string& line : lines) text += "\x1b[2K" + line + "\n";
  std::fputs((text + "\x1b[J").c_str(), stderr);
  drawn_ = lines.size();
}

void LiveView::clear() {
  if (!shown_ || drawn_ == 0) return;
  std::fprintf(stderr, "\x1b[%zuA\x1b[J", drawn_);
  drawn_ = 0;
}

}  // namespace tidemark::bench
