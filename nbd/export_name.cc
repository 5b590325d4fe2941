#include "nbd/export_name.h"

namespace tidemark::nbd {

namespace {
constexpr char kForms[] = "names are MACHINE/DISK@POINT (such as web1/disk0@latest) and clone/NAME/DISK";
}

Result<ExportName> parse_export_name(std::string_view name) {
  const auto wrong = [&] { return fail(Code::not_found, std::string(name), "no export has such a name", kForms); };
  ExportName parsed;
  std::string_view rest = name;
  if (rest.starts_with("clone/")) {
    parsed.clone = true;
    rest.remove_prefix(6);
  }
  const auto slash = rest.find('/');
  if (slash == std::string_view::npos) return wrong();
  parsed.owner = rest.substr(0, slash);
  rest.remove_prefix(slash + 1);
  if (!parsed.clone) {
    const auto at = rest.rfind('@');
    parsed.at = at == std::string_view::npos ? "latest" : rest.substr(at + 1);
    rest = rest.substr(0, at);
    if (parsed.at.empty()) return wrong();
  }
  parsed.disk = rest;
  if (parsed.owner.empty() || parsed.disk.empty()) return wrong();
  return parsed;
}

}  // namespace tidemark::nbd
