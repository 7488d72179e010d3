// Load a .pt2 package of gp.export(..., aot=True) and run it, without Python.
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include <iostream>

int main(int argc, char* argv[]) {
  if (argc < 2) {
    std::cerr << "usage: run_package NET.pt2 [BATCH HEIGHT WIDTH]\n";
    return 2;
  }
  auto size = [&](int i, int64_t otherwise) { return argc > i ? std::stoll(argv[i]) : otherwise; };
  c10::InferenceMode mode;
  torch::inductor::AOTIModelPackageLoader net(argv[1]);
  auto images = torch::ones({size(2, 1), 3, size(3, 224), size(4, 224)});
  for (const auto& output : net.run({images})) {
    std::cout << output.sizes() << ' ' << output.to(torch::kDouble).sum().item<double>() << '\n';
  }
}
