#include "cli/partitions.h"

#include <nlohmann/json.hpp>
#include <ostream>

#include "cli/format.h"
#include "cli/output.h"

namespace tidemark::cli {
namespace {

using nlohmann::json;

void print_directories(Context& context, const json& health) {
  using enum Table::Align;
  Table table({{"DIRECTORY"}, {"STATE"}, {"FREE", right}, {"OF", right}, {"WHY"}});
  for (const json& directory : array_at(health, "directories"))
    table.add({or_dash(text_at(directory, "path")), or_dash(text_at(directory, "state")),
               human_size(number_at(directory, "available_bytes").value_or(0)),
               human_size(number_at(directory, "total_bytes").value_or(0)), clean(text_at(directory, "why"))});
  table.print(context.out);
}

}  // namespace

Outcome show_health(Context& context) {
  // An unhealthy server answers with 503 and the same body, so the body is what counts.
  const json health = TIDEMARK_TRY(context.client.get_health());
  const bool ok = flag_at(health, "ok");
  if (context.json) {
    answer(context, health);
    return ok ? 0 : 1;
  }
  using enum Table::Align;
  Table table({{"PARTITION", right}, {"STATE"}, {"MACHINES", right}, {"DIRECTORY"}, {"WHY"}});
  for (const json& partition : array_at(health, "partitions"))
    table.add({std::to_string(number_at(partition, "id").value_or(0)), or_dash(text_at(partition, "state")),
               std::to_string(number_at(partition, "machines").value_or(0)), or_dash(text_at(partition, "directory")),
               clean(text_at(partition, "why"))});
  table.print(context.out);
  if (!array_at(health, "directories").empty()) {
    context.out << '\n';
    print_directories(context, health);
  }
  context.out << (ok ? "every partition serves\n" : "not every partition serves\n");
  return ok ? 0 : 1;
}

Outcome open_partition(Context& context, std::uint32_t partition) {
  const json begun =
      TIDEMARK_TRY(context.client.post("/v1/partitions/" + std::to_string(partition) + "/open", json::object()));
  if (context.json) return answer(context, begun);
  context.out << "partition " << partition << " is being opened; `tidemark health` tells what comes of it\n";
  return 0;
}

}  // namespace tidemark::cli
