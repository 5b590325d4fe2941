// The live view on a terminal: a few lines that are drawn over. Silent when there is no terminal.
#pragma once

#include <string>
#include <vector>

namespace tidemark::bench {

class LiveView {
 public:
  explicit LiveView(bool wanted);  // draws only when the standard error is a terminal
  ~LiveView() { clear(); }
  LiveView(const LiveView&) = delete;
  LiveView& operator=(const LiveView&) = delete;

  bool shown() const { return shown_; }
  void draw(const std::vector<std::string>& lines);
  void clear();

 private:
  const bool shown_;
  std::size_t drawn_ = 0;
};

}  // namespace tidemark::bench
